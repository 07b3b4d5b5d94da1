"""Text: discrete diffusion of characters, bytes and tokens; infilling, scoring, training and evaluation."""
