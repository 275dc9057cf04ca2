"""Picture files: which are opened, what their samples mean, how they are turned, and how folders are walked.

No torch here; `images` makes tensors of what this room reads.
"""
