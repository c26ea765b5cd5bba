"""What is started from a shell or by another program: a file a command."""
