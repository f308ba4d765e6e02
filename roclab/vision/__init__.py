"""Transfer learning for images: data, models, training, evaluation, comparison."""
