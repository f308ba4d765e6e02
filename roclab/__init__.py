"""RocLab: fair transfer learning for images, and RocLM, a language model you can read in one sitting."""

__version__ = "0.2.0"
