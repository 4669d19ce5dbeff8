"""The world of the bundled model: it can be drawn, spoken of and judged by programs.

world      shapes on a ground, and how they are drawn
captions   what may be said about a scene
judge      whether a picture shows what its prompt asked for
scoring    how often a model paints what it is asked for
"""

SETS = ("one", "two", "held-out", "same", "three")  # of prompts, as `scoring` explains
