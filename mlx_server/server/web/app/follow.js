/** Scrolling with a text that grows, only while its reader is at its end. */

import { iconButton } from './dom.js'

const NEAR = 48 // pixels from the end that still count as the end

export class Follower {
  /** @param {HTMLElement} scroller */
  constructor(scroller) {
    this.scroller = scroller
    this.following = true
    this.button = iconButton('down', 'To the end', () => this.toEnd(), {
      id: 'to-end',
      hidden: true,
    })
    scroller.after(this.button)
    let before = scroller.scrollTop
    scroller.addEventListener('scroll', () => {
      // Up is the reader's doing; further down may be ours.
      const up = scroller.scrollTop < before - 1
      before = scroller.scrollTop
      if (this.isAtEnd()) this.following = true
      else if (up) this.following = false
      this.button.hidden = this.isAtEnd()
    })
    new ResizeObserver(() => this.follow()).observe(scroller)
  }

  isAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller
    return scrollHeight - scrollTop - clientHeight < NEAR
  }

  /** Called when something has grown. */
  follow() {
    if (this.following) this.scroller.scrollTop = this.scroller.scrollHeight
    this.button.hidden = this.isAtEnd()
  }

  /** Go there, and follow from now on. */
  toEnd() {
    this.following = true
    this.follow()
  }
}
