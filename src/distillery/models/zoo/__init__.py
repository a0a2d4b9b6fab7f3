"""The networks that this project builds itself; ``experiment.zoo`` lists them by name."""
