"""Where and why classifiers fail, as plain data: `facts.analyse` (`roclab.report.error_page` shows it).

runs -> gather (predictions for the same images, side by side) -> facts (with covariates and gradcam) -> sentences
"""
