"""A sweep's record, its pictures and its page."""
