"""What a person sees of a run: one self-contained page and the lines on a terminal."""
