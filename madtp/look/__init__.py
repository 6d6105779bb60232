"""For people to look at: answers about their own pictures, what was kept, charts, reports, a page, the demo, checks.

Nothing else knows of it.
"""
