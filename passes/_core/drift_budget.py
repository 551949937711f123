"""Budget of drift that a lossy pass keeps to where it decides itself how much it takes."""

from __future__ import annotations

import math

WITH_DATA = 14.0
"""Least SQNR in dB that the outputs keep, measured on calibration data.

At 15 dB ResNet-20, MiniLM and EfficientNet-Lite0 lost nothing of their metric, and OCR 0.7 points.
"""

PLACES = 18.0
"""The same, with data or without, where outputs say something of several places of a sample, as of
the characters of a line or the pixels of a picture: a sample is right only where every place is.
Quantized after it, OCR lost 4 lines of 100 at 14 dB, 2 at 17 and at 18; at 20 dB nothing could go.
A picture of twice the resolution had 21 dB of PSNR instead of 31 at 12 dB on made-up inputs.
"""

CHANNELS_WITH_DATA = 17.0
"""The same where whole channels go: EfficientNet-Lite0 kept 17.5 dB on calibration images and 13.3
on others, and lost 2 points.
"""

WITHOUT_DATA = 12.0
"""The same on made-up inputs, which show more drift than real ones: 3 to 6 dB on ResNet-20, 2 to 8
on OCR, none on EfficientNet-Lite0.
"""


BROKEN = 12.0
"""SQNR in dB below which a result is called broken unless a metric says otherwise.

Models lost there: EfficientNet-Lite0 2 points of accuracy below 10 dB, OCR 4 at 10.3 and up to 99
below. At 12.4 and more ResNets, MiniLM and EfficientNet-Lite0 lost nothing that a metric shows.
"""


def lost_share(sqnr: float) -> float:
    """Share of the outputs' mean square that an SQNR in dB leaves to the error."""
    return float(10.0 ** (-sqnr / 10.0))


def sqnr_of(share: float) -> float:
    """SQNR in dB of an error with that share of the outputs' mean square; infinite of none."""
    if share <= 0:
        return math.inf
    return -10.0 * math.log10(share)
