package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// command runs a program in the caller's namespace.
func command(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	return string(out), err
}

// output runs a program on the host.
func (h *Host) output(stdin, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := h.Do(cmd.Start); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return out.String(), err
}

// Run runs a program on the host to its end and returns its standard output;
// the error holds what it wrote to standard error.
func (h *Host) Run(ctx context.Context, args ...string) (string, error) {
	return h.RunAs(ctx, nil, args...)
}

// RunAs is Run as another user; nil is root.
func (h *Host) RunAs(ctx context.Context, u *User, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	cmd.SysProcAttr = u.attr()
	cmd.WaitDelay = time.Second
	if err := h.Do(cmd.Start); err != nil {
		return "", fmt.Errorf("start %s on %s: %w", args[0], h.Name, err)
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), &RunError{Host: h.Name, Args: args, Stderr: complaint.String(), Stdout: out.String(), Err: err}
	}
	return out.String(), nil
}

// RunError is a program that failed.
type RunError struct {
	Host           string
	Args           []string
	Stdout, Stderr string
	Err            error
}

// Error holds all that the program said.
func (e *RunError) Error() string {
	return fmt.Sprintf("on %s: %s: %v\n%s%s", e.Host, strings.Join(e.Args, " "), e.Err, e.Stderr, e.Stdout)
}

// Unwrap returns how it ended.
func (e *RunError) Unwrap() error { return e.Err }

// User is whom a program runs as: without capabilities, and with no groups but
// its own.
type User struct{ UID, GID uint32 }

// Nobody is an ordinary user.
var Nobody = &User{65534, 65534}

func (u *User) attr() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setpgid: true}
	if u != nil {
		a.Credential = &syscall.Credential{Uid: u.UID, Gid: u.GID}
	}
	return a
}

// Program is what Start starts.
type Program struct {
	Name string   // of the log file and in reports
	Args []string // program and arguments
	Env  []string // beside the lab's own environment
	Dir  string   // working directory
	User *User    // nil: root
}

// Process is a running program with its log.
type Process struct {
	Name string
	Host *Host
	Log  string // path: standard output and error

	cmd  *exec.Cmd
	done chan struct{}
	err  error // after done
}

// Start starts a program on the host. Its output goes to a file of its own; a
// program of the same name started again appends.
func (h *Host) Start(p Program) (*Process, error) {
	log := filepath.Join(h.lab.Dir, h.Name+"-"+p.Name+".log")
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	defer f.Close()
	fmt.Fprintf(f, "--- %s %s\n", time.Now().Format(time.TimeOnly), strings.Join(p.Args, " "))
	cmd := exec.Command(p.Args[0], p.Args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = f, f, p.Dir
	cmd.Env = append(os.Environ(), p.Env...)
	cmd.SysProcAttr = p.User.attr()
	if err := h.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", p.Name, h.Name, err)
	}
	pr := &Process{Name: p.Name, Host: h, Log: log, cmd: cmd, done: make(chan struct{})}
	go func() {
		pr.err = cmd.Wait()
		close(pr.done)
	}()
	h.lab.mu.Lock()
	h.lab.procs = append(h.lab.procs, pr)
	h.lab.mu.Unlock()
	return pr, nil
}

// PID is the program's own process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running reports whether the program has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Signal sends a signal to the program, if it runs.
func (p *Process) Signal(s syscall.Signal) {
	if p.Running() {
		p.cmd.Process.Signal(s) // errors only if it ended just now
	}
}

// Kill kills the program with SIGKILL and waits for its end.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// Stop ends the program with SIGTERM and waits; the error is how it ended.
func (p *Process) Stop(ctx context.Context) error {
	p.Signal(syscall.SIGTERM)
	return p.Wait(ctx)
}

// Wait waits for the program's end and returns how it ended.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("%s still runs: %w", p.Name, ctx.Err())
	}
}

// Output is all that the program wrote so far.
func (p *Process) Output() string {
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// WaitOutput waits until the program's log holds text.
func (p *Process) WaitOutput(ctx context.Context, text string) error {
	return Wait(ctx, fmt.Sprintf("%q in the log of %s", text, p.Name), func(context.Context) error {
		if strings.Contains(p.Output(), text) {
			return nil
		}
		if !p.Running() {
			return Permanent(fmt.Errorf("%s ended: %v\n%s", p.Name, p.err, p.Output()))
		}
		return errors.New("not there yet")
	})
}

// permanent is an error that ends Wait.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// Permanent marks an error that waiting will not cure.
func Permanent(err error) error { return permanent{err} }

// pollEvery is how often Wait looks.
const pollEvery = 50 * time.Millisecond

// Wait asks f again and again until it returns nil or ctx ends; the error
// then is f's last one.
func Wait(ctx context.Context, what string, f func(context.Context) error) error {
	t := time.NewTicker(pollEvery)
	defer t.Stop()
	for {
		err := f(ctx)
		var p permanent
		switch {
		case err == nil:
			return nil
		case errors.As(err, &p):
			return fmt.Errorf("wait for %s: %w", what, p.error)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w; last: %w", what, ctx.Err(), err)
		case <-t.C:
		}
	}
}

// All runs functions at once and returns their errors joined.
func All(fs ...func() error) error {
	errs := make([]error, len(fs))
	var wg sync.WaitGroup
	for i, f := range fs {
		wg.Go(func() { errs[i] = f() })
	}
	wg.Wait()
	return errors.Join(errs...)
}
