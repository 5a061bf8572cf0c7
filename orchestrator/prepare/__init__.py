"""What a recipe refers to, found and checked before any work starts."""
