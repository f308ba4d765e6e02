"""Where and why classifiers fail: `analyse` computes it as plain data, `write_page` shows it.

runs -> gather (the same images, side by side) -> facts (with covariates and gradcam) -> analysis (sentences)
     -> errors.json, and index.html with figures/ and thumbs/ beside it
"""

from roclab.vision.error_analysis.facts import analyse
from roclab.vision.error_analysis.page import older_page, write_page

__all__ = ["analyse", "older_page", "write_page"]
