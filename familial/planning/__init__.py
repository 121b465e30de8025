"""What a config will need of a pod, known before anything runs there."""
