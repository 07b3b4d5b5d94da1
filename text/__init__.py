"""Text: discrete diffusion over characters and tokens."""
