"""The losses: one file a method, its mathematics as a pure function and the term that calls it."""
