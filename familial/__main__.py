"""`python -m familial`."""

from familial import main

if __name__ == '__main__':
  main.main()
