"""The student's training, and the card of its adapter."""
