"""A sweep: what is asked, what it takes, and how it goes."""
