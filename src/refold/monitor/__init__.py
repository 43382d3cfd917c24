"""One long series watched: unusual steps, alarms, and steps judged as they come."""

from refold.monitor.monitor import Monitor
from refold.monitor.stream import Step, Stream

__all__ = ["Monitor", "Step", "Stream"]
