"""Memory, time and layout of a config on a pod, before anything runs there."""
