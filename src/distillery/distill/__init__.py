"""What a student is trained for: a weighted sum of named terms, each a file of its own in losses/.

Their list, with options that can be read without torch, is experiment/schema/objective/registry.py.
"""
