"""The `polydiff` command."""
