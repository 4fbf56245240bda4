"""What runs in a program's own interpreter before the program: standard library only, Python 3.8 or newer."""
