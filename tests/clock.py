class Clock:
    """Stands in for the module `time`: it moves only when it is told to."""

    now = 1000.0

    def time(self) -> float:
        return self.now

    perf_counter = process_time = time
