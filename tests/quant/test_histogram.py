"""A histogram and the extremes that go with it."""

import numpy as np
from vitdeploy.quant.histogram import Histogram


def test_extremes_fit_what_was_counted_or_they_do_not():
    """Each has to lie in the outermost bin of its own side."""
    histogram = Histogram()
    histogram.observe(np.array([-3.0, 0.5, 8.0], np.float32))
    assert histogram.fits(-3.0, 8.0)
    for low, high in ((-3.0, 9.0), (-4.0, 8.0), (-3.0, 7.0), (-2.0, 8.0), (8.0, -3.0)):
        assert not histogram.fits(low, high)
    assert not Histogram().fits(0.0, 0.0)
