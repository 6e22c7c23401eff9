"""Slow, obvious versions of the sampler: one sample, one point, one channel at a time."""

import math

import numpy as np


def euler_to_interleaved(angles):
    """Matrix product of the three rotations, then its first two columns, row by row."""
    a, b, c = angles
    about_x = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    about_y = np.array([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    about_z = np.array([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
    rotation = about_z @ about_y @ about_x
    return [rotation[row, column] for row in range(3) for column in range(2)]


def samples(rows, *, rate_hz, window_s, margin, num_actions, delta=(), mask=(), epsilon=1e-5):
    """(frame, proprio, actions) of every accepted sample of rows [T, D]."""
    times = [frame / rate_hz for frame in range(len(rows))]
    found = []
    for start in range(len(rows) - margin):
        end = min(times[start] + window_s, times[-1])
        points = []
        for k in range(num_actions + 1):
            moment = times[start] + k / num_actions * (end - times[start])
            points.append([np.interp(moment, times, channel) for channel in np.transpose(rows)])
        if max(abs(now - then) for now, then in zip(points[1], points[0], strict=True)) < epsilon:
            continue
        proprio, actions = list(points[0]), [list(point) for point in points[1:]]
        for channel in delta:
            for action in actions:
                action[channel] -= proprio[channel]
        for channel in mask:
            proprio[channel] = 0.0
        found.append((start, proprio, actions))
    return found
