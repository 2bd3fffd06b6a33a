"""d2net: match photos across day and night, seasons and years.

D2-Net (Dusmanu et al., "D2-Net: A Trainable CNN for Joint Description and Detection of Local
Features", CVPR 2019): reproduced exactly, or with its faults corrected.

```python
import d2net

model = d2net.D2Net.from_pretrained()
a, b = model.extract("a.jpg"), model.extract("b.jpg")
matches = d2net.match(a, b, verify="fundamental")
d2net.plot_matches("a.jpg", "b.jpg", a, b, matches, output="matches.png")
```

Public names are loaded when first used, so that `import d2net` costs nothing.
"""

from __future__ import annotations

import zlib  # noqa: F401 (if pycolmap loads the library first, pillow crashes when it writes PNG)

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
