package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// asOwner gives root up, for good, for the owner of the data directory: what lies there may
// be what he likes, and leads root nowhere.
func asOwner(dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	fi, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	st := fi.Sys().(*syscall.Stat_t)
	if st.Uid == 0 {
		return nil
	}
	err = syscall.Setgroups([]int{int(st.Gid)})
	if err == nil {
		err = syscall.Setgid(int(st.Gid))
	}
	if err == nil {
		err = syscall.Setuid(int(st.Uid))
	}
	if err != nil {
		return fmt.Errorf("become user %d, who owns %s: %w", st.Uid, dir, err)
	}
	return nil
}
