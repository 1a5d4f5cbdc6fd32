package e2e

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"causeway/agent/debug"
	"causeway/netns/lab"
)

// The kernel has one wall clock for all namespaces, and static programs take none from a
// library; but programs read it by a function that the kernel maps into each, the vDSO's
// (vdso(7)). setBack replaces that of one process by one that asks the kernel
// and takes a day off, so that the process sees what it would after somebody set the
// clock back: the wall clock jumps, the monotonic one goes on.

// patchedClock is a process's clock function as it was.
type patchedClock struct {
	pid int
	at  int64
	was []byte
}

// gettime is clock_gettime(2) for amd64, with that many seconds more for CLOCK_REALTIME.
func gettime(seconds int32) []byte {
	return append(binary.LittleEndian.AppendUint32([]byte{
		0xb8, 0xe4, 0, 0, 0, // mov eax, 228 (clock_gettime)
		0x0f, 0x05, // syscall
		0x85, 0xff, // test edi, edi
		0x75, 0x07, // jnz over the next
		0x48, 0x81, 0x06, // add qword [rsi], seconds
	}, uint32(seconds)), 0xc3) // ret
}

// setBack sets the clock back by a day for one running process.
func setBack(pid int) (*patchedClock, error) { return setClock(pid, -24*time.Hour) }

// setClock sets the clock of one running process.
func setClock(pid int, by time.Duration) (*patchedClock, error) {
	code := gettime(int32(by / time.Second))
	if runtime.GOARCH != "amd64" {
		return nil, errors.New("set a clock back: this is written for amd64")
	}
	base, size, err := vdso(pid)
	if err != nil {
		return nil, err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	image := make([]byte, size)
	if _, err := mem.ReadAt(image, base); err != nil {
		return nil, fmt.Errorf("read the vDSO: %w", err)
	}
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, fmt.Errorf("read the vDSO: %w", err)
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return nil, fmt.Errorf("read the vDSO: %w", err)
	}
	for _, s := range symbols {
		if s.Name == "__vdso_clock_gettime" && s.Size >= uint64(len(code)) {
			c := &patchedClock{pid: pid, at: base + int64(s.Value), was: bytes.Clone(image[s.Value:][:len(code)])}
			return c, c.write(code)
		}
	}
	return nil, errors.New("the vDSO has no clock_gettime that is large enough")
}

// restore puts the function back, if the process still runs.
func (c *patchedClock) restore() error {
	if c == nil || syscall.Kill(c.pid, 0) != nil {
		return nil
	}
	return c.write(c.was)
}

// write replaces the function while no thread is inside the vDSO.
func (c *patchedClock) write(code []byte) error {
	base, size, err := vdso(c.pid)
	if err != nil {
		return err
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", c.pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return lab.Wait(ctx, "a moment outside the clock function", func(context.Context) error {
		defer syscall.Kill(c.pid, syscall.SIGCONT)
		if err := syscall.Kill(c.pid, syscall.SIGSTOP); err != nil {
			return lab.Permanent(err)
		}
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", c.pid))
		for _, t := range tasks {
			text, err := os.ReadFile(t)
			if err != nil {
				return err
			}
			// running, or numbers of which the last is the program counter
			words := strings.Fields(string(text))
			var pc int64
			if _, err := fmt.Sscanf(words[len(words)-1], "0x%x", &pc); err != nil || pc >= base && pc < base+size {
				return fmt.Errorf("a thread is at %q", text)
			}
		}
		_, err := mem.WriteAt(code, c.at)
		return err
	})
}

// vdso is where the kernel mapped its own functions into a process.
func vdso(pid int) (base, size int64, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var end int64
		if !strings.HasSuffix(s.Text(), "[vdso]") {
			continue
		}
		if _, err := fmt.Sscanf(s.Text(), "%x-%x", &base, &end); err != nil {
			return 0, 0, err
		}
		return base, end - base, nil
	}
	return 0, 0, fmt.Errorf("process %d has no vDSO", pid)
}

// clockOf is the time that an agent has.
func (x *explained) clockOf(ctx context.Context, n *Node) (time.Time, error) {
	var r debug.Runtime
	err := n.ask(ctx, "/v1/runtime", &r)
	return r.Now, err
}
