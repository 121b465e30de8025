"""`python -m familial`."""

from familial.cli import main

if __name__ == '__main__':
  main.main()
