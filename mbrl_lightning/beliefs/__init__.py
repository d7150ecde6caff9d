"""From transitions of a task to what is believed of it: context -> belief."""
