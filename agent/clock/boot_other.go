//go:build !linux

package clock

import "time"

var started = time.Now()

// ThisBoot counts from the program's start on this system.
func ThisBoot() Boot { return Boot{ID: started.String(), Since: time.Since(started)} }
