"""What training changed of the teacher, carried over into the student's channels."""
