"""NeMo's `io_dump` for objects with few arguments."""

import dataclasses
import inspect
from typing import Any, Self

import fiddle as fdl
from fiddle.experimental.dataclasses import convert_dataclasses_to_configs
from nemo.lightning import io

PLAIN = (str, int, float, bool, type(None))


class WholeIO(io.IOMixin):
    """Writes defaults out as well: NeMo reads an object of a single value back as the path of a pickle, and can't dump
    one whose defaults are made by a function."""

    def io_init(self, **kwargs: Any) -> fdl.Config[Self]:
        """What `io_dump` writes: the arguments, and the defaults of the others."""
        parameters = inspect.signature(type(self).__init__).parameters.values()
        defaults = {parameter.name: parameter.default for parameter in parameters}
        plain = {name: default for name, default in defaults.items() if isinstance(default, PLAIN)}
        return super().io_init(**{**plain, **self._made_defaults(), **kwargs})

    def _made_defaults(self) -> dict[str, Any]:
        """Defaults of the fields of a dataclass that a function makes, as configs."""
        if not dataclasses.is_dataclass(self):
            return {}
        makers = {field.name: field.default_factory for field in dataclasses.fields(self)}
        made = {name: maker() for name, maker in makers.items() if maker is not dataclasses.MISSING}
        return {name: convert_dataclasses_to_configs(value, allow_post_init=True) for name, value in made.items()}
