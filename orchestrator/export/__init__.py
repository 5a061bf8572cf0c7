"""An adapter as others use it."""
