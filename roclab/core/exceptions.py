"""The exceptions a user may see. Everything else that escapes is a defect of ours."""


class RocLabError(Exception):
    """A user's mistake or a damaged input: one clear line that names what, where and what to do.

    The command line prints the line and exits with code 2; `--debug` shows the traceback.
    """


class CheckpointError(RocLabError):
    """A model file that is truncated, incomplete, of the wrong shape or of an unsupported kind."""


class DataError(RocLabError):
    """A image, folder, table or text that cannot be used as asked."""
