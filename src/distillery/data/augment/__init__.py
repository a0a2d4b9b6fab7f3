"""How a decoded image becomes what the network trains on: where it is cut, and what is done to the square."""
