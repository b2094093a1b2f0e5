"""The commands, each as a person says it."""
