"""What classifies features after a merge: the heads as trained, or a classifier fitted to the served backbone.

``protocol.head.kind`` chooses, and a method's spelling may (``average@merged/ncm``):

* ``linear``, ``zero_shot``: the heads as they are, concatenated.
* ``refit``: the trained head trained again on features of the served weights; heads of past tasks stay.
* ``align``: all heads seen trained again on samples of a Gaussian a class (SLCA, arXiv:2303.05118).
* ``ncm``: a prototype a class, the mean of its features, compared by cosine (SimpleCIL, arXiv:2303.07338).
* ``ncm_both``: the same on features of theta_0 and of the served weights side by side (ADAM or APER, same paper).
* ``lda``: linear discriminants with one covariance for all classes (SLDA, arXiv:1909.01520).
* ``ridge``: ridge regression on random features (RanPAC, arXiv:2307.02251).

All but the first line read the current task's training images once, as they are shown at test, under the weights that
are served after that task. What was fitted to past tasks stays, so it drifts where the weights move on: that is part of
the result. Where they do not (a frozen backbone), ``ncm``, ``lda`` and ``ridge`` are those of all images at once.
"""

from bench.run.classifiers.kinds import KINDS, serving_of
from bench.run.classifiers.ridge import RIDGES
from bench.run.classifiers.serving import Classifier, Features, Serving

__all__ = ["KINDS", "RIDGES", "Classifier", "Features", "Serving", "serving_of"]
