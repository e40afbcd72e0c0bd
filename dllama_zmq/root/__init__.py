"""The root: reads the model, gives each worker its slices, runs steps over the bus, samples, serves clients."""
