"""What requests hold."""
