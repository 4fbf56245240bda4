"""What a server said: an answer, a refusal, or why it gave none."""
