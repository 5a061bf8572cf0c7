"""What is asked of a teacher's parameters, and what is taken from them."""
