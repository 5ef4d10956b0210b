"""The start of a run: the line that says what runs where, and the look at the first step."""
