"""Pruning by coverage in models of other libraries: `madtp.prune(model, p=0.5, batches=images)`.

A model stays what it is, with its weights, its names and its class. What changes is the `forward` of the one module of
it that runs the layers of a tower, and that on this instance alone: the loop over layers is then the one of our
own towers, and what a layer consists of is told by a table of names. `restore` takes it away again.

    adapted.py        what an adapter says of a model
    layer.py          a pre-norm layer whose parts are somebody else's
    replacement.py    what takes the place of methods on one instance, and goes away again
    tower.py          what an adapter says of a tower, and the forward that takes its place
    timm.py, open_clip.py, transformers.py
                      which models of these libraries can be pruned, and where their parts are
    refusal.py        why the others cannot
    prune.py          amount and shape from some inputs; restore, cost
    picture.py        what became of the patches

Nothing here imports any of these libraries before a model of theirs comes along.
"""
