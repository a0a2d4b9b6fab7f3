"""What a student is trained for: a weighted sum of named terms, each a file of its own, listed in terms.py.

Nothing heavy is imported here, so that the list can be read without torch.
"""
