"""Breaking real servers while searches and writes go on, and what that did to both."""
