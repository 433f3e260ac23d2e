/** The one door through which markup gets into the page: what a model wrote must never run. */

import DOMPurify from '../vendor/purify.es.js'

const TAGS = [
  ...['p', 'br', 'hr', 'h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'blockquote', 'pre', 'code', 'span'],
  ...['ul', 'ol', 'li', 'table', 'thead', 'tbody', 'tr', 'th', 'td'],
  ...['a', 'em', 'strong', 'del'],
]

const OPTIONS = {
  ALLOWED_TAGS: TAGS,
  ALLOWED_ATTR: ['href', 'title', 'class', 'align', 'start'],
  // The expression below is else held against these as well, which are no addresses.
  ADD_URI_SAFE_ATTR: ['align', 'start'],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
}

DOMPurify.addHook('afterSanitizeAttributes', (node) => {
  // Only what we make ourselves has a class: colours and languages of code.
  if (node.hasAttribute?.('class') && !/^(hljs|language)-/.test(node.getAttribute('class')))
    node.removeAttribute('class')
  if (node.tagName !== 'A') return
  if (!node.hasAttribute('href')) return
  node.setAttribute('target', '_blank')
  node.setAttribute('rel', 'noopener noreferrer nofollow')
})

/**
 * @param {string} html
 * @returns {DocumentFragment} Without anything that runs, loads, submits or styles.
 */
export function sanitized(html) {
  return DOMPurify.sanitize(html, OPTIONS)
}
