"""Images from models: samplers chosen, drawn, measured."""
