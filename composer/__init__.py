"""The composition at work: configuration, pipeline, dispatch, state, supervisor, command line."""
