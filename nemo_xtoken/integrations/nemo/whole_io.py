"""NeMo's `io_dump` for objects with few arguments."""

import inspect
from typing import Any, Self

import fiddle as fdl
from nemo.lightning import io

PLAIN = (str, int, float, bool, type(None))


class WholeIO(io.IOMixin):
    """Writes defaults out as well: NeMo reads an object of a single value back as the path of a pickle."""

    def io_init(self, **kwargs: Any) -> fdl.Config[Self]:
        """What `io_dump` writes: the arguments, and the plain defaults of the others."""
        parameters = inspect.signature(type(self).__init__).parameters.values()
        defaults = {parameter.name: parameter.default for parameter in parameters}
        plain = {name: default for name, default in defaults.items() if isinstance(default, PLAIN)}
        return super().io_init(**{**plain, **kwargs})
